"""What will a run need? Memory, bytes sent and time, before anything is loaded."""
