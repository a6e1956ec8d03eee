"""One file for each task. ``task.py`` says what a task is; every other file here is one."""
