"""The two rivals of the paper's tables that train on video itself: KD (Jain et al. 2021) and ActionCLIP."""
