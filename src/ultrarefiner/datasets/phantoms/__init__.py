"""Phantoms by layout: synthetic scenes, and the files and folders that they are written as."""
