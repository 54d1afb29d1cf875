"""byref beside its peers, measured side by side in one run: `python -m bench`.

`cases` says what is measured and what is to be reached, `roles` what the two processes of a trial do, `peers`
how each system is set up (one module each), `workers` how processes are started and stopped, `rust` how the
Rust half of the suite is called, and `report` what is printed and written.
"""
