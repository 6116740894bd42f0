"""Starts runs on many processes and hosts. Floor 4: knows no device."""
