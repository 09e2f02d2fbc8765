"""The exceptions that pulsar raises: one tree under ``PulsarException``.

Owns: the classes and what each of them means to the person who sees it.
Leaves: where they are raised, and how they are shown, to everybody else.

An exception says who is to blame. ``ImproperlyConfigured`` is the operator's,
``ProtocolError`` the remote peer's; ``PulsarException`` itself is a mistake in
the code that calls pulsar.
"""


class PulsarException(Exception):
    """Base of every exception that pulsar raises on its own account."""


class ImproperlyConfigured(PulsarException):
    """A setting, an address, a file or a callable that cannot be used.

    The message is one sentence for the operator: what is wrong and what is
    accepted. The command line prints it without a traceback.
    """


class ProtocolError(PulsarException):
    """The remote peer sent something that its protocol does not allow."""


class FrameTooLarge(ProtocolError):
    """A frame grew past the cap of its framer before it was complete."""


class IncompleteFrame(ProtocolError):
    """The stream ended inside a frame."""


class InvalidMessage(PulsarException, ValueError):
    """A message that cannot be put into a frame of the framer it was given to."""


class FlowControlError(PulsarException, RuntimeError):
    """``pause_writing`` or ``resume_writing`` called twice in a row."""


class ClientError(PulsarException):
    """Base of what a client call raises about its connection or its pool."""


class ConnectTimeout(ClientError, TimeoutError):
    """The connection was not established within the connect timeout."""


class PoolTimeout(ClientError, TimeoutError):
    """No connection became available within the pool's acquire timeout."""


class PoolClosed(ClientError):
    """The pool was closed: it hands out no more connections."""


class ConnectionClosed(ClientError, ConnectionError):
    """The peer closed the connection before the response was complete."""


class ActorError(PulsarException):
    """Base of what goes wrong between actors."""


class ActorGone(ActorError, ConnectionError):
    """The actor that a message was for does not exist, or has ended."""


class CommandNotFound(ActorError, LookupError):
    """The actor has no such command."""


class RemoteError(ActorError):
    """An error in another actor that cannot be rebuilt here; its text says what it was."""


class ReloadFailed(PulsarException):
    """The next generation could not start; the one that serves goes on.

    The message says why, with the traceback of the new code where it raised.
    """


class ControlError(PulsarException):
    """A server or a client on the control socket said no, or what nobody understands."""
