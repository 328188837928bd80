"""Errors that coarse networks make, drawn on true masks: how each kind is made. No torch."""
