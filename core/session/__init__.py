"""What the peers say to each other besides tensors: handshake, checkpoints, goodbye.

    client                                   server
    HELLO  protocol, agreement, run, step,─►  compares; loads its checkpoint of that step
           marks
                                          ◄─  HELLO, or ERROR with both values
    ACTIVATION                            ─►
                                          ◄─  GRADIENT or PREDICTION
    CONTROL save: step                    ─►  writes its checkpoint
                                          ◄─  CONTROL saved: step
    CONTROL finish                        ─►
                                          ◄─  CONTROL finished; both close

Before the handshake a peer takes small frames only; after it, frames of a few batches.
"""
