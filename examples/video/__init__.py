"""Video between four processes, every frame passed by reference: ``python -m examples.video``.

==============  ================================================================================
``clip``        finds a real 1280x720 clip, and decodes it over and over
``roles``       what the processes do: one camera publishes; analyst, keeper and painter subscribe
``ink``         drawing on a NumPy array
``report``      what the processes tell each other about it
``memory``      what the kernel says about a process's memory
``crew``        starts the processes, listens to them, and notices when one of them fails
``display``     the status line, the summary, and the picture
==============  ================================================================================

``clip`` and ``roles`` show how ``byref`` is used; the rest is stagecraft.
"""
