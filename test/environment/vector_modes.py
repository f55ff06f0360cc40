"""A vector environment of Gymnasium's in one of its three autoreset modes, for test_gymnasium.cpp."""
import gymnasium


def make(num_envs, mode):
    return gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync", max_episode_steps=30,
                              vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode[mode]})
