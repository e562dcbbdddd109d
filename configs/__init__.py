"""Experiments shipped with the package, one YAML each."""
