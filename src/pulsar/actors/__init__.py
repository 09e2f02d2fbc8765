"""Who runs an application: a tree of processes, or the process that was started, by itself.

Owns: actors and their messages; the arbiter, its monitors and workers; what keeps them
alive, replaces them and lets them end; the control socket.
Leaves: what is served to the applications above, the sockets' traffic to ``protocols``.

From outside in: ``tree`` turns a program into an ``arbiter``, which has a ``generation``
of the code loaded by a ``forkserver``, which forks ``worker`` processes when a ``monitor``
wants some. ``single`` is the other way, without any of these.
"""
