"""Which nodes of a graph become operations of a segment."""

from __future__ import annotations

from nqruntime.operators import NodeContext

from .collected import Collected
from .layer_reader import READERS as LAYER_READERS
from .sequence_reader import READERS as SEQUENCE_READERS
from .sequence_reader import SEVERAL_OUTPUTS, read_known

_TABLES = (LAYER_READERS, SEQUENCE_READERS)


class SegmentReader(Collected):
    """Collects the operations of consecutive nodes."""

    def take(self, index: int, context: NodeContext) -> bool:
        """Add a node; False if it is none of a segment."""
        node = context.node
        several = node.op_type in SEVERAL_OUTPUTS
        if not node.inputs or (len(node.outputs) != 1 and not several):
            return False
        if read_known(self, context, index):
            self.nodes[index] = node
            return True
        for readers in _TABLES:
            read = readers.get(node.op_type)
            if read is not None and read(self, context, index):
                self.nodes[index] = node
                return True
        return False
