"""What will a run need? Memory, bytes sent and engine, before anything is loaded."""
