// Cases of an op: what a plan holds for, and the plans by case.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/ivalue.h>

#include "plan.h"

namespace flashmix {

using Case = std::vector<int64_t>;

struct HashCase {
  size_t operator()(const Case& words) const {
    uint64_t hash = 14695981039346656037ull;
    for (int64_t word : words) hash = (hash ^ static_cast<uint64_t>(word)) * 1099511628211ull ^ (hash >> 29);
    return hash;
  }
};

// Writes down what plans may depend on. Not `fits` where something is of a kind that plans never see.
class Description {
 public:
  bool fits = true;
  Case words;
  c10::SmallVector<at::Tensor, 8> tensors;
  std::optional<at::Device> device;

  Description() {
    words.reserve(48);
    words.push_back(at::globalContext().deterministicAlgorithms() * 2 +
                    at::globalContext().deterministicFillUninitializedMemory());
  }

  void add(const at::Tensor& x) {
    tensors.push_back(x);
    if (!x.defined()) {
      words.push_back(0);
      return;
    }
    const auto* impl = x.unsafeGetTensorImpl();
    if (x.layout() != at::kStrided || impl->is_python_dispatch() || x.is_conj() || x.is_neg() ||
        x._is_zerotensor() || !x.has_storage() || impl->has_symbolic_sizes_strides() ||
        (device && *device != x.device())) {
      fits = false;
      return;
    }
    device = x.device();
    words.push_back(1 + 16 * (reinterpret_cast<uintptr_t>(x.data_ptr()) % 16) +
                    256 * static_cast<int64_t>(x.scalar_type()) + 65536 * static_cast<int64_t>(device->type()) +
                    16777216 * static_cast<int64_t>(device->index() + 1));
    words.push_back(x.dim());
    words.insert(words.end(), x.sizes().begin(), x.sizes().end());
    words.insert(words.end(), x.strides().begin(), x.strides().end());
  }

  void add(const c10::IValue& value) {
    if (value.isTensor()) {
      add(value.toTensor());
    } else if (value.isInt()) {
      words.push_back(3);
      words.push_back(value.toInt());
    } else if (value.isBool()) {
      words.push_back(4 + 16 * value.toBool());
    } else if (value.isDouble()) {
      double real = value.toDouble();
      int64_t bits;
      std::memcpy(&bits, &real, 8);
      words.push_back(5);
      words.push_back(bits);
    } else if (value.isString()) {
      const std::string& text = value.toStringRef();
      words.push_back(6 + 16 * static_cast<int64_t>(text.size()));
      for (size_t at = 0; at < text.size(); at += 8) {
        int64_t part = 0;
        std::memcpy(&part, text.data() + at, std::min<size_t>(8, text.size() - at));
        words.push_back(part);
      }
    } else {
      fits = false;
    }
  }

  // Of an argument by its type, since None may be in the place of a tensor.
  void add(const c10::IValue& value, bool tensor) {
    if (tensor && value.isNone()) add(at::Tensor());
    else if (value.isNone()) words.push_back(7);
    else add(value);
  }
};

// How autograd treats a case: what the forward saves, and what else its backward needs.
struct Autograd {
  int64_t context;              // number of the other attributes of ctx, kept in Python
  std::vector<int64_t> saved;   // input i as i, output j as -2 - j, None as -1
  std::vector<bool> differentiable;  // of each output
};

struct Entry {
  std::shared_ptr<const Plan> plan;
  std::shared_ptr<const Autograd> autograd;
  int missed = 0;
  bool refused = false;
};

// Cases that are asked for in this thread and have no plan, the innermost last.
struct Pending {
  class Cases* cases;
  Case words;
  int missed;
};
inline thread_local std::vector<Pending> pending;

class Cases {
 public:
  static constexpr size_t MOST = 4096;

  Entry find(const Case& words) const {
    std::shared_lock lock(mutex_);
    auto found = entries_.find(words);
    return found == entries_.end() ? Entry() : found->second;
  }

  // Counts a case that has no plan; how often it was counted before, -1 once it is refused.
  int miss(const Case& words) {
    std::unique_lock lock(mutex_);
    if (entries_.size() >= MOST && !entries_.count(words)) entries_.clear();
    Entry& entry = entries_[words];
    return entry.refused ? -1 : entry.missed++;
  }

  void keep(const Case& words, std::shared_ptr<const Plan> plan, std::shared_ptr<const Autograd> autograd) {
    std::unique_lock lock(mutex_);
    Entry& entry = entries_[words];
    entry.plan = std::move(plan);
    if (autograd) entry.autograd = std::move(autograd);
  }

  void refuse(const Case& words) {
    std::unique_lock lock(mutex_);
    entries_[words].refused = true;
  }

  void clear() {
    std::unique_lock lock(mutex_);
    entries_.clear();
  }

  size_t plans() const {
    std::shared_lock lock(mutex_);
    size_t count = 0;
    for (const auto& [words, entry] : entries_) count += entry.plan != nullptr;
    return count;
  }

 private:
  mutable std::shared_mutex mutex_;
  std::unordered_map<Case, Entry, HashCase> entries_;
};

// Python's turn for a case without a plan; it may keep one.
class Asking {
 public:
  Asking() { pending.push_back({nullptr, {}, -1}); }  // of what no plan is kept for
  Asking(Cases& cases, const Case& words) { pending.push_back({&cases, words, cases.miss(words)}); }
  ~Asking() { pending.pop_back(); }
  Asking(const Asking&) = delete;
};

}  // namespace flashmix
