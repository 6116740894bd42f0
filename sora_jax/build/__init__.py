"""Config -> objects. The only reader of ConfigDict: below here plain values travel.

Names choose functions through explicit tables; no code supplies a second default.
"""
