"""What people put beside the base: ControlNets and T2I-Adapters, LoRAs, IP-Adapters."""
