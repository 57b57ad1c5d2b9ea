"""Codebirds."""
