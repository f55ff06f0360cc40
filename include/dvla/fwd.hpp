// Forward declarations of what a composition is spelt with: nothing but names.
#pragma once

namespace dvla {

template <class... Parts>
struct Pipeline;
template <class Pipeline>
struct Config;

// Stage words: they group policies for the reader, and refuse what is not theirs.
template <class... Parts>
struct Sampler;
template <class... Parts>
struct Trainer;
template <class... Parts>
struct DataPlane;
template <class... Parts>
struct ControlPlane;
template <class... Parts>
struct Memory;
template <class... Parts>
struct Placement;
template <class... Parts>
struct Schedule;

}  // namespace dvla
