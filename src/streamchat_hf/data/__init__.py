"""Annotations and worlds that become training rows."""
