"""What tasks read, from cells to arrays: text, pictures, sounds, the columns of a table, stretches of time."""
