// A plan: what an op does for one case, as steps that need no Python.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/SmallVector.h>

#include "driver.h"

namespace flashmix {

// Eight bytes of an argument: their bits, or the address of a value's element.
struct Word {
  int64_t value = -1;  // number of a tensor, or -1
  int64_t bits = 0;    // or an offset in bytes
};

// An argument: a word, or the address of a block of words.
struct Argument {
  bool block = false;
  std::vector<Word> words;
};

struct Layout {
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;  // in elements, from the value's first one
};

// An argument of an op of PyTorch: what is the same in all calls, or tensors.
struct Operand {
  c10::IValue fixed;
  struct Part {
    int64_t value;
    std::optional<Layout> layout;
  };
  std::vector<Part> tensors;
  bool list = false, device = false;
};

struct Step {
  enum Kind : int64_t { ALLOCATE, COPY, LAUNCH, CALL, FREE, OP } kind;
  std::optional<c10::OperatorHandle> op;
  std::vector<Operand> operands;
  std::vector<int64_t> results;  // -1: not used
  int64_t value = -1, from = -1;
  Layout layout, from_layout;
  at::ScalarType dtype = at::kFloat;
  bool zero = false;
  Launch launch{};
  int (*call)(const void*) = nullptr;
  std::vector<Argument> arguments;
};

struct Output {
  int64_t value = -1;  // -1: none
  std::optional<Layout> layout;  // nullopt: the value as it is
};

// Thrown where a native CPU kernel reports that it could not run; Python says why.
struct CallFailed {};

struct Plan {
  int64_t inputs = 0;
  std::vector<at::Tensor> constants;
  std::vector<Step> steps;
  std::vector<Output> outputs;
  int64_t allocated = 0;

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> given, at::Device device) const {
    c10::OptionalDeviceGuard guard;
    void* stream = nullptr;
    if (device.is_cuda()) {
      guard.reset_device(device);
      driver.ensure_context(device.index());
      driver.check(driver.current_stream(device.index(), &stream), "finding the current stream");
    }
    std::vector<at::Tensor> values;
    values.reserve(given.size() + constants.size() + allocated);
    values.insert(values.end(), given.begin(), given.end());
    values.insert(values.end(), constants.begin(), constants.end());
    values.resize(given.size() + constants.size() + allocated);
    for (const Step& step : steps) run(step, values, device, stream);
    std::vector<at::Tensor> made;
    made.reserve(outputs.size());
    for (const Output& output : outputs)
      made.push_back(output.value < 0 ? at::Tensor()
                     : output.layout  ? view(values[output.value], *output.layout)
                                      : values[output.value]);
    return made;
  }

 private:
  static at::Tensor view(const at::Tensor& x, const Layout& to) {
    return x.as_strided(to.sizes, to.strides, x.storage_offset() + to.offset);
  }

  static void run_op(const Step& step, std::vector<at::Tensor>& values, at::Device device) {
    torch::jit::Stack stack;
    stack.reserve(step.operands.size());
    for (const Operand& operand : step.operands) {
      c10::List<at::Tensor> list;
      at::Tensor last;
      for (const auto& [value, layout] : operand.tensors) {
        last = layout ? view(values[value], *layout) : values[value];
        if (operand.list) list.push_back(last);
      }
      if (operand.device) stack.emplace_back(device);
      else if (operand.list) stack.emplace_back(std::move(list));
      else if (!operand.tensors.empty()) stack.emplace_back(std::move(last));
      else stack.push_back(operand.fixed);
    }
    step.op->callBoxed(&stack);
    for (size_t at = 0; at < step.results.size(); ++at)
      if (step.results[at] >= 0) values[step.results[at]] = stack[at].toTensor();
  }

  static int64_t bits(const Word& word, const std::vector<at::Tensor>& values) {
    if (word.value < 0) return word.bits;
    return reinterpret_cast<int64_t>(values[word.value].data_ptr()) + word.bits;
  }

  static void run(const Step& step, std::vector<at::Tensor>& values, at::Device device, void* stream) {
    switch (step.kind) {
      case Step::ALLOCATE: {
        const auto& [sizes, strides, offset] = step.layout;
        at::Tensor& x = values[step.value];
        x = at::empty_strided(sizes, strides, at::TensorOptions().dtype(step.dtype).device(device));
        if (step.zero) x.zero_();
        break;
      }
      case Step::COPY:
        view(values[step.value], step.layout).copy_(view(values[step.from], step.from_layout));
        break;
      case Step::FREE:
        values[step.value].reset();
        break;
      case Step::OP:
        run_op(step, values, device);
        break;
      case Step::LAUNCH:
      case Step::CALL: {
        c10::SmallVector<int64_t, 96> room;
        size_t count = 0;
        for (const Argument& argument : step.arguments) count += argument.words.size() + 1;
        room.resize(count);
        c10::SmallVector<void*, 40> arguments;
        size_t next = 0;
        for (const Argument& argument : step.arguments) {
          size_t first = next;
          for (const Word& word : argument.words) room[next++] = bits(word, values);
          if (argument.block) {
            room[next] = reinterpret_cast<int64_t>(&room[first]);
            first = next++;
          }
          arguments.push_back(&room[first]);
        }
        if (step.kind == Step::LAUNCH) {
          step.launch(arguments.data(), stream);
          break;
        }
        c10::SmallVector<int64_t, 24> slots;
        for (void* argument : arguments) slots.push_back(*static_cast<int64_t*>(argument));
        if (step.call(slots.data())) throw CallFailed();
        break;
      }
    }
  }
};

// Reads a plan from the numbers that Python writes it in; see plan.py.
class Reader {
 public:
  Reader(at::ArrayRef<int64_t> words, std::vector<std::string> names) : words_(words), names_(std::move(names)) {}

  Plan plan(std::vector<at::Tensor> constants) {
    Plan made;
    made.inputs = next();
    made.allocated = next();
    made.constants = std::move(constants);
    for (int64_t left = next(); left > 0; --left) made.steps.push_back(step());
    for (int64_t left = next(); left > 0; --left) {
      Output output;
      output.value = next();
      if (next()) output.layout = layout();
      made.outputs.push_back(std::move(output));
    }
    TORCH_CHECK(at_ == words_.size(), "flashmix: a launch plan has words left over");
    return made;
  }

 private:
  int64_t next() {
    TORCH_CHECK(at_ < words_.size(), "flashmix: a launch plan ends too early");
    return words_[at_++];
  }

  std::vector<int64_t> numbers() {
    std::vector<int64_t> made(next());
    for (int64_t& number : made) number = next();
    return made;
  }

  Layout layout() {
    Layout made;
    made.sizes = numbers();
    made.strides = numbers();
    made.offset = next();
    return made;
  }

  std::vector<Argument> arguments() {
    std::vector<Argument> made(next());
    for (Argument& argument : made) {
      argument.block = next();
      argument.words.resize(next());
      for (Word& word : argument.words) {
        word.value = next();
        word.bits = next();
      }
    }
    return made;
  }

  Step step() {
    Step made;
    made.kind = static_cast<Step::Kind>(next());
    switch (made.kind) {
      case Step::ALLOCATE:
        made.value = next();
        made.dtype = static_cast<at::ScalarType>(next());
        made.zero = next();
        made.layout = layout();
        break;
      case Step::COPY:
        made.value = next();
        made.layout = layout();
        made.from = next();
        made.from_layout = layout();
        break;
      case Step::LAUNCH: {
        Launch& launch = made.launch;
        launch.name = names_.at(next());
        launch.function = reinterpret_cast<void*>(next());
        for (uint32_t& size : launch.grid) size = next();
        launch.warps = next();
        launch.blocks_a_cluster = next();
        launch.shared = next();
        launch.cooperative = next();
        launch.early = next();
        made.arguments = arguments();
        break;
      }
      case Step::CALL:
        made.call = reinterpret_cast<int (*)(const void*)>(next());
        made.arguments = arguments();
        break;
      case Step::FREE:
        made.value = next();
        break;
      case Step::OP: {
        const std::string& name = names_.at(next());
        const std::string& overload = names_.at(next());
        made.op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
        made.operands.resize(next());
        for (Operand& operand : made.operands) operand = this->operand();
        made.results = numbers();
        break;
      }
    }
    return made;
  }

  Operand operand() {
    enum { NONE, INT, REAL, BOOL, INTS, TENSORS, TENSOR, DEVICE, NUMBER };
    Operand made;
    switch (next()) {
      case NONE:
        break;
      case INT:
        made.fixed = next();
        break;
      case REAL:
        made.fixed = real();
        break;
      case NUMBER:
        made.fixed = next() ? at::native::wrapped_scalar_tensor(real()) : at::native::wrapped_scalar_tensor(next());
        break;
      case BOOL:
        made.fixed = next() != 0;
        break;
      case INTS:
        made.fixed = numbers();
        break;
      case DEVICE:
        made.device = true;
        break;
      case TENSORS:
        made.list = true;
        for (int64_t left = next(); left > 0; --left) made.tensors.push_back(part());
        break;
      case TENSOR:
        made.tensors.push_back(part());
        break;
      default:
        TORCH_CHECK(false, "flashmix: a launch plan has an operand of no known kind");
    }
    return made;
  }

  double real() {
    int64_t bits = next();
    double made;
    std::memcpy(&made, &bits, sizeof made);
    return made;
  }

  Operand::Part part() {
    Operand::Part made{next(), std::nullopt};
    if (next()) made.layout = layout();
    return made;
  }

  at::ArrayRef<int64_t> words_;
  std::vector<std::string> names_;
  size_t at_ = 0;
};

}  // namespace flashmix
