"""byref beside its peers, measured side by side in one run: `python -m bench`.

`cases` says what is measured and what is to be reached (in the terms of `metrics`), `roles` what the processes
of a trial do, `peers` how each system is set up (one module each), `trials` how processes are started and
stopped, `rust` how the Rust half of the suite is called, `runner` in which order trials are made. `figures`
are what they come to, `report` and `chart` what is printed and written.
"""
