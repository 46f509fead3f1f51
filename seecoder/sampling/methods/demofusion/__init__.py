"""DemoFusion: progressive upscaling, with skip residual and dilated sampling to keep it coherent."""
