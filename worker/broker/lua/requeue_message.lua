-- Moves a held message back into its list, unless it is no longer held, and wakes a worker. With
-- `only_overdue`, does nothing while the message's lease lasts.
--
-- unacked        sag.unacked        hash        tag removed
-- unacked_index  sag.unacked_index  sorted set  tag removed
-- list           of the queue       list        message added
-- ready          sag.ready.<queue>  sorted set  a worker that runs fewer than `below` tasks is woken
-- tag
-- message        JSON, or '' to drop it
-- push           'RPUSH' to put it before the waiting messages, 'LPUSH' behind them
-- only_overdue   1 to move it only when its lease has expired
-- below
-- Returns 1, or 0 when nothing was moved.
local unacked, unacked_index, list, ready = unpack(KEYS)
local tag, message, push, only_overdue, below = unpack(ARGV)
if redis.call('HEXISTS', unacked, tag) == 0 then
  redis.call('ZREM', unacked_index, tag)
  return 0
end
if only_overdue == '1' then
  local lease_until = redis.call('ZSCORE', unacked_index, tag)
  if lease_until and tonumber(lease_until) > now_s() then return 0 end
  -- Changes nothing, but fails while Redis is out of memory, when no lease can be renewed either.
  redis.call('ZADD', unacked_index, 'XX', lease_until or 0, tag)
end
-- The push is first because it fails for a key of another type: then the message stays held.
if message ~= '' then redis.call(push, list, message) end
redis.call('HDEL', unacked, tag)
redis.call('ZREM', unacked_index, tag)
if message ~= '' then wake_one(ready, below) end
return 1
