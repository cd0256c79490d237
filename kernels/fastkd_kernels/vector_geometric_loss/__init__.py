"""The loss of vector features by length and angle, without their projection in memory."""
