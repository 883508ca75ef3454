"""From nodes of a graph to steps of machine code: what a segment computes, where values lie, how it runs."""
