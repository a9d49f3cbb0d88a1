"""Fine-tuning: data, 4-bit base model, LoRA adapters, trainer and run folder. Imports core only."""
