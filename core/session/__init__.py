"""What the peers say to each other besides tensors: handshake, checkpoints, goodbye.

    client                                   server
    HELLO  protocol, agreement, run, step,─►  compares; loads its checkpoint of that step
           marks
                                          ◄─  HELLO, or ERROR with what differs
    ACTIVATION                            ─►
                                          ◄─  GRADIENT or PREDICTION
    CONTROL save: step, keep              ─►  writes its checkpoint
                                          ◄─  CONTROL saved: step
    CONTROL finish                        ─►
                                          ◄─  CONTROL finished
    CONTROL bye                           ─►  both close

An ACTIVATION past the stack may ask for a gradient instead of a prediction; that is no step.
Training steps follow each other, from the one that the HELLO goes on from; a request for a
checkpoint and the goodbye name how many are done, and the former may name older ones to keep.
Everything else is a `ProtocolError`, which the other end is told.

A HELLO names the session, and both say when the other end counts as gone, and how long a client may
take to come back: what comes of that is `splitlab.core.session.lasting`.

Before the handshake a peer takes small frames only; after it, frames of a few batches.
"""
