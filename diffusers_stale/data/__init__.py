"""Barnyard scenes, their pictures and their sentences."""
