"""A seeded random stress across real processes in which every payload is checked: ``python -m tests.torture``.

`controller` starts, freezes and kills worker processes. A `worker` runs publishers (`publishing`) and subscribers
(`subscribing`) side by side and forks now and then. What a message must contain follows from who sent it and its number
(`pattern`); how far each publisher came outlives it on a `board` that all processes share.
"""
