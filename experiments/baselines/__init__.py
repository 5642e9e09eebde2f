"""The two baselines of the paper's tables that train on the videos: KD (Jain et al. 2021) and ActionCLIP."""
