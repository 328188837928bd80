"""A page in the browser: an image, its outlines, and a mask that follows boxes and clicks."""
