"""What watches the kernel and programs: eBPF, probes, ftrace, tracepoints and perf events."""
