"""Every row of every registry, through the same questions."""
