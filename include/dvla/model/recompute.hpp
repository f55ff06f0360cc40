// A part of a network whose activations are not kept for the backward pass but computed again in it (gradient checkpointing,
// Chen et al., arXiv 1604.06174): what is kept is what goes in. Needs torch; for parts without random numbers.
#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <utility>
#include <vector>

namespace dvla::detail {

/// Of a network's activations to later ones. None that it returns is undefined.
using NetworkPart = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

struct Recompute : torch::autograd::Function<Recompute> {
  /// `graph`: a number that wants a gradient, so that there is a graph where the part's own weights alone want one.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const NetworkPart& part, const at::Tensor& /*graph*/,
                                                at::TensorList given, std::size_t wanted_results) {
    const std::vector<at::Tensor> inputs = given.vec();
    context->save_for_backward(inputs);
    context->saved_data["wanted"] = wanted(inputs);
    context->saved_data["part"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(part));
    std::vector<at::Tensor> made = part(inputs);
    if (wanted_results < made.size())
      context->mark_non_differentiable(
          {made.begin() + static_cast<std::ptrdiff_t>(wanted_results), made.end()});
    return made;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto wants = context->saved_data["wanted"].toBoolList();
    std::vector<at::Tensor> inputs;
    for (const at::Tensor& each : context->get_saved_variables()) {
      const bool wants_one = wants.get(inputs.size());
      inputs.push_back(each.defined() ? each.detach().requires_grad_(wants_one) : each);
    }
    std::vector<at::Tensor> outputs, slopes;
    {
      const at::AutoGradMode graph(true);
      const auto kept = context->saved_data["part"].toCapsule();
      const auto made = static_cast<const Kept&>(*kept).part(inputs);
      for (std::size_t i = 0; i < made.size(); ++i)
        if (made[i].requires_grad() && gradients[i].defined())
          outputs.push_back(made[i]), slopes.push_back(gradients[i]);
    }
    if (!outputs.empty()) torch::autograd::backward(outputs, slopes);
    torch::autograd::variable_list results(2);  // the part's and the number's
    for (const at::Tensor& each : inputs)
      results.push_back(each.defined() && each.requires_grad() ? each.grad() : at::Tensor());
    results.emplace_back();  // that of how many results are wanted
    return results;
  }

 private:
  struct Kept : torch::CustomClassHolder {
    explicit Kept(NetworkPart of) : part(std::move(of)) {}
    NetworkPart part;
  };
  static c10::List<bool> wanted(const std::vector<at::Tensor>& inputs) {
    c10::List<bool> which;
    for (const at::Tensor& each : inputs) which.push_back(each.defined() && each.requires_grad());
    return which;
  }
};

/// part(inputs). `trains`: weights of the part want a gradient; `wanted_results`: so many of the results, the first ones, depend on what
/// wants one, so that what is computed of the others alone needs no backward pass.
inline std::vector<at::Tensor> recomputed(const NetworkPart& part, const std::vector<at::Tensor>& inputs,
                                          bool trains, std::size_t wanted_results) {
  for (const at::Tensor& each : inputs) trains = trains || (each.defined() && each.requires_grad());
  if (!at::GradMode::is_enabled() || !trains) return part(inputs);
  return Recompute::apply(part, at::zeros({1}).requires_grad_(true), at::TensorList(inputs), wanted_results);
}

}  // namespace dvla::detail
