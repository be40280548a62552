"""Networks, conditioned on log-SNR and class."""
