"""From files and folders to arrays, splits and batches."""
