"""Strangers that do everything a peer can do, beside honest publishers and subscribers that must not notice."""
