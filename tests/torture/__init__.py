"""The proof that byref survives, in three parts, across real processes in which every payload is checked.

* ``python -m tests.torture`` (`make torture`): a seeded random stress. `controller` starts, freezes and kills worker
  processes, and takes the rendezvous directory away now and then. A `worker` leads lives side by side, forks, and is
  short of descriptors or memory at times (`hardship`). A life is a publisher (`publishing`), a subscriber
  (`subscribing`), an event queue (`queueing`) or a relay (`relaying`); or a scene, played with helpers (`scenes`):
  many connect while somebody is frozen (`bursting`), nobody reads while segments come and go (`hoarding`), somebody
  only polls (`polling`), a program ends with a queue at work (`leaving`), a newcomer looks for who was always there
  (`probing`). What a message must contain follows from who
  sent it and its number (`pattern`, `kinds`, `names`); what a subscriber is owed, `checking` knows; how far each
  publisher came outlives it on a `board` that all processes share.
* ``python -m tests.torture.steps`` (`make steps`): one process dies, or stops, at each step of the protocols (`roles`,
  `stage`, `traffic`). Needs a build with fault points.
* ``python -m tests.torture.soak`` (`make soak`): very many messages, and memory that stays flat (`soaking`).
"""
