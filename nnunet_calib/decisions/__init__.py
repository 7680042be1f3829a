"""What calibrated probabilities are for: thresholds that keep a promise."""
