"""The edge-to-node and edge-to-vector losses, the teacher's sum over edges fused in."""
