"""PPO of Llama 2-Chat: `run.py` begins it or goes on, `stage.py` is what the loop asks."""
