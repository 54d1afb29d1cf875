"""Programs of other libraries on byref, without a change to them: `byref exec`, and what it puts in place.

Importing byref imports none of this.
"""
