// Ops of flashmix whose repeated calls never reach Python.
//
// A call is a case: shapes, strides, dtypes, device and options. The first calls of a case run in
// Python, where one of them is recorded as a plan (recording.py); all others replay it. Autograd's
// part is here as well, and backwards have cases and plans of their own.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cases.h"

namespace flashmix {

Driver driver{};

namespace {

using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

OperatorHandle find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("flashmix::" + name).c_str(), "");
}

struct Operation {
  explicit Operation(std::string name)
      : name(std::move(name)), op(find_op(this->name)), python(find_op(this->name + "_python")) {
    for (const auto& argument : op.schema().arguments())
      tensors.push_back(argument.type()->isSubtypeOf(*c10::OptionalType::ofTensor()));
    const auto autograd = c10::Dispatcher::singleton().findSchema({"flashmix::" + this->name + "_autograd", ""});
    if (autograd) python_autograd = autograd;
  }

  std::string name;
  OperatorHandle op, python;
  std::optional<OperatorHandle> python_autograd;
  std::vector<bool> tensors;  // whether an argument is one
  Cases forward, backward;

  Description describe(const Stack& stack) const {
    Description made;
    size_t first = stack.size() - tensors.size();
    for (size_t at = 0; at < tensors.size() && made.fits; ++at) made.add(stack[first + at], tensors[at]);
    if (!made.device) made.fits = false;
    return made;
  }
};

std::vector<std::unique_ptr<Operation>>& operations() {
  static auto* all = new std::vector<std::unique_ptr<Operation>>();
  return *all;
}

Operation& operation(const std::string& name) {
  for (auto& one : operations())
    if (one->name == name) return *one;
  TORCH_CHECK(false, "flashmix: the launcher has no op ", name);
}

// The op below autograd.
struct Forward : c10::OperatorKernel {
  explicit Forward(Operation& owner) : owner(owner) {}
  Operation& owner;

  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    Description asked = owner.describe(*stack);
    if (!asked.fits) {
      Asking nothing;
      return owner.python.callBoxed(stack);
    }
    Entry entry = owner.forward.find(asked.words);
    if (entry.plan) {
      try {
        auto made = entry.plan->run(asked.tensors, *asked.device);
        torch::jit::drop(*stack, owner.tensors.size());
        for (auto& output : made) stack->emplace_back(std::move(output));
        return;
      } catch (const CallFailed&) {
        Asking nothing;
        return owner.python.callBoxed(stack);
      }
    }
    Asking asking(owner.forward, asked.words);
    owner.python.callBoxed(stack);
  }
};

// Callers stand in an Asking.
variable_list backward_in_python(
    const Operation& owner, const Autograd& how, const std::vector<bool>& needs, const variable_list& grads,
    const variable_list& saved) {
  static const OperatorHandle python = find_op("_launcher_backward");
  Stack stack;
  auto optional = [](const variable_list& list) {
    c10::List<std::optional<at::Tensor>> made;
    for (const auto& x : list) made.push_back(x.defined() ? std::optional<at::Tensor>(x) : std::nullopt);
    return made;
  };
  stack.emplace_back(owner.name);
  stack.emplace_back(how.context);
  std::vector<int64_t> wanted(needs.begin(), needs.end());
  stack.emplace_back(std::move(wanted));
  stack.emplace_back(optional(grads));
  stack.emplace_back(optional(saved));
  python.callBoxed(&stack);
  auto tensors = stack[0].toTensorVector();
  auto places = stack[1].toIntVector();
  variable_list made(needs.size());
  for (size_t at = 0; at < places.size(); ++at) made.at(places[at]) = tensors.at(at);
  return made;
}

struct Call : torch::autograd::Function<Call> {
  // `given` are those of `tensors` that are not None: a node takes no others.
  static variable_list forward(
      AutogradContext* ctx, at::TensorList given, const at::ArrayRef<at::Tensor>* all, Operation* owner,
      Stack* stack, std::shared_ptr<const Autograd> how) {
    const auto& tensors = *all;
    at::AutoDispatchBelowADInplaceOrView below;
    owner->op.callBoxed(stack);
    variable_list outputs;
    for (auto& value : *stack) outputs.push_back(value.toTensor());
    variable_list saved, plain;
    for (int64_t place : how->saved)
      saved.push_back(place == -1 ? at::Tensor() : place >= 0 ? tensors[place] : outputs[-2 - place]);
    size_t differentiable = 0;
    for (size_t at = 0; at < outputs.size(); ++at) {
      if (how->differentiable[at]) ++differentiable;
      else plain.push_back(outputs[at]);
    }
    ctx->save_for_backward(std::move(saved));
    if (!plain.empty()) ctx->mark_non_differentiable(plain);
    ctx->set_materialize_grads(differentiable > 1);
    ctx->saved_data["owner"] = reinterpret_cast<int64_t>(owner);
    ctx->saved_data["how"] = reinterpret_cast<int64_t>(how.get());
    std::vector<int64_t> places;
    for (size_t at = 0; at < tensors.size(); ++at)
      if (tensors[at].defined()) places.push_back(at);
    ctx->saved_data["places"] = std::move(places);
    ctx->saved_data["tensors"] = static_cast<int64_t>(tensors.size());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto& owner = *reinterpret_cast<Operation*>(ctx->saved_data["owner"].toInt());
    auto& how = *reinterpret_cast<const Autograd*>(ctx->saved_data["how"].toInt());
    auto places = ctx->saved_data["places"].toIntVector();
    auto saved = ctx->get_saved_variables();
    std::vector<bool> needs(ctx->saved_data["tensors"].toInt());
    for (size_t at = 0; at < places.size(); ++at) needs[places[at]] = ctx->needs_input_grad(at);
    bool any = false;
    for (size_t at = 0; at < grads.size(); ++at) any = any || (how.differentiable[at] && grads[at].defined());
    auto made = any ? gradients(owner, how, needs, grads, saved) : variable_list(needs.size());
    variable_list given(places.size() + 4);  // all, owner, stack and how have none
    for (size_t at = 0; at < places.size(); ++at) given[at] = std::move(made[places[at]]);
    return given;
  }

  static variable_list gradients(
      Operation& owner, const Autograd& how, const std::vector<bool>& needs, const variable_list& grads,
      const variable_list& saved) {
    Description asked;
    asked.fits = !at::GradMode::is_enabled();  // else the backward is to be recorded in turn
    asked.words.push_back(how.context);
    for (bool need : needs) asked.words.push_back(need);
    for (const auto& x : grads)
      if (asked.fits) asked.add(x);
    for (const auto& x : saved)
      if (asked.fits) asked.add(x);
    if (!asked.fits || !asked.device) {
      Asking nothing;
      return backward_in_python(owner, how, needs, grads, saved);
    }
    Entry entry = owner.backward.find(asked.words);
    if (entry.plan) {
      try {
        at::AutoDispatchBelowADInplaceOrView below;
        return entry.plan->run(asked.tensors, *asked.device);
      } catch (const CallFailed&) {
        Asking nothing;
        return backward_in_python(owner, how, needs, grads, saved);
      }
    }
    Asking asking(owner.backward, asked.words);
    return backward_in_python(owner, how, needs, grads, saved);
  }
};

// Autograd's part of the op.
struct Recorded : c10::OperatorKernel {
  explicit Recorded(Operation& owner) : owner(owner) {}
  Operation& owner;

  void operator()(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    bool wanted = false, tangent = false;
    size_t first = stack->size() - owner.tensors.size();
    for (size_t at = 0; at < owner.tensors.size(); ++at) {
      const auto& value = (*stack)[first + at];
      if (!owner.tensors[at] || !value.isTensor() || !value.toTensor().defined()) continue;
      const auto& x = value.toTensor();
      wanted = wanted || x.requires_grad();
      tangent = tangent || x._fw_grad(0).defined();
    }
    if (tangent) return owner.python_autograd->callBoxed(stack);
    if (!wanted || !at::GradMode::is_enabled()) {
      at::AutoDispatchBelowADInplaceOrView below;
      return op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    }
    Description asked = owner.describe(*stack);
    auto how = asked.fits ? owner.forward.find(asked.words).autograd : nullptr;
    if (!how) return owner.python_autograd->callBoxed(stack);
    Stack arguments(std::make_move_iterator(stack->begin() + first), std::make_move_iterator(stack->end()));
    torch::jit::drop(*stack, owner.tensors.size());
    variable_list given;
    for (const auto& x : asked.tensors)
      if (x.defined()) given.push_back(x);
    const at::ArrayRef<at::Tensor> all(asked.tensors);
    for (auto& output : Call::apply(at::TensorList(given), &all, &owner, &arguments, how))
      stack->emplace_back(std::move(output));
  }
};

torch::Library& library() {
  static auto* made = new torch::Library(torch::Library::FRAGMENT, "flashmix", std::nullopt, __FILE__, __LINE__);
  return *made;
}

// Where the case that Python was asked for stands: how often it was missed before, -1 for none.
int64_t missed() { return pending.empty() ? -1 : pending.back().missed; }

void keep(
    at::ArrayRef<int64_t> words, std::vector<at::Tensor> constants, std::vector<std::string> names, int64_t context,
    at::ArrayRef<int64_t> saved, at::ArrayRef<int64_t> differentiable) {
  TORCH_CHECK(!pending.empty() && pending.back().cases, "flashmix: no case waits for a launch plan");
  std::shared_ptr<Autograd> autograd;
  if (context >= 0) {
    // Nodes of a graph point to it: it is never freed.
    autograd = std::make_shared<Autograd>();
    autograd->context = context;
    autograd->saved = saved.vec();
    autograd->differentiable.assign(differentiable.begin(), differentiable.end());
    static std::mutex mutex;
    static auto* all = new std::vector<std::shared_ptr<Autograd>>();
    std::lock_guard lock(mutex);
    all->push_back(autograd);
  }
  auto plan = std::make_shared<const Plan>(Reader(words, std::move(names)).plan(std::move(constants)));
  pending.back().cases->keep(pending.back().words, std::move(plan), std::move(autograd));
}

}  // namespace

}  // namespace flashmix

TORCH_LIBRARY_FRAGMENT(flashmix, m) {
  using namespace flashmix;
  m.def("_launcher_missed() -> int", []() -> int64_t { return missed(); });
  m.def("_launcher_refuse() -> ()", []() {
    if (!pending.empty() && pending.back().cases) pending.back().cases->refuse(pending.back().words);
  });
  m.def(
      "_launcher_keep(int[] words, Tensor[] constants, str[] names, int context, int[] saved, int[] differentiable)"
      " -> ()",
      [](at::ArrayRef<int64_t> words, std::vector<at::Tensor> constants, std::vector<std::string> names,
         int64_t context, at::ArrayRef<int64_t> saved, at::ArrayRef<int64_t> differentiable) {
        keep(words, std::move(constants), std::move(names), context, saved, differentiable);
      });
  m.def("_launcher_take(str name, str device) -> ()", [](const std::string& name, const std::string& device) {
    operations().push_back(std::make_unique<Operation>(name));
    Operation& one = *operations().back();
    bool cuda = device == "cuda";
    // The kernel in Python stays registered; that this one comes before it is meant.
    struct Silent : c10::WarningHandler {
      void process(const c10::Warning&) override {}
    } silent;
    c10::WarningUtils::WarningHandlerGuard guard(&silent);
    library().impl(
        name.c_str(), torch::dispatch(cuda ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU,
                                      torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Forward>(one))));
    if (one.python_autograd)
      library().impl(
          name.c_str(), torch::dispatch(cuda ? c10::DispatchKey::AutogradCUDA : c10::DispatchKey::AutogradCPU,
                                        torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Recorded>(one))));
  });
  m.def("_launcher_forget() -> ()", []() {
    for (auto& one : operations()) {
      one->forward.clear();
      one->backward.clear();
    }
  });
  m.def("_launcher_plans(str name) -> (int, int)", [](const std::string& name) -> std::tuple<int64_t, int64_t> {
    Operation& one = operation(name);
    return {one.forward.plans(), one.backward.plans()};
  });
  m.def("_launcher_driver(int[] addresses) -> ()", [](at::ArrayRef<int64_t> addresses) {
    TORCH_CHECK(addresses.size() * sizeof(int64_t) == sizeof(Driver), "flashmix: a driver has ",
                sizeof(Driver) / sizeof(int64_t), " functions");
    std::memcpy(&driver, addresses.data(), sizeof(Driver));
  });
}
