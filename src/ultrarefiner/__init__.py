"""UltraRefiner: breast-ultrasound lesion masks, refined and compared honestly."""

__version__ = "0.8.0"
