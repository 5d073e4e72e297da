from fastadv.loops.adversary import (
    Adversary as Adversary,
    bare_network as bare_network,
)
