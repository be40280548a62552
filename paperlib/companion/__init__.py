"""The companion: profiles, claims, provenance, figures, notebooks and the command line."""
