"""Trained models outside the study: in other programs and on new images."""
