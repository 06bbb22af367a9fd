"""How metalsim's results compare with those of a Mac: a corpus of small kernels, a command that
records what they give (`python -m metalsim.fidelity record`) and one that compares
(`python -m metalsim.fidelity compare FILE`)."""
