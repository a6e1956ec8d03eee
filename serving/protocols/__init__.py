"""The forms in which clients ask. One file each: what a body means, and how answers are written back."""
