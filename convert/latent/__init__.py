"""Multi-head latent attention as what comes out: one small latent and one rotary key in place of K/V heads."""
