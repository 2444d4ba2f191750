-- The reconciler is about to send a task's message again: is it still the one that it looked at?
--
-- KEYS[1]  ns:{id}:task  hash        read
-- KEYS[2]  ns:open       sorted set  id touched, so that the message has time to arrive
-- ARGV     id, the score in ns:open that was seen
-- gives    the request's JSON, or nothing when the task is held or was touched meanwhile
local touched = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not touched or tonumber(touched) ~= tonumber(ARGV[2]) then return false end
local of = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'request')
if not of[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return false
end
if of[1] == 'running' and tonumber(of[2] or '0') > now_s() then return false end
redis.call('ZADD', KEYS[2], string.format('%.6f', now_s()), ARGV[1])
-- Beyond MAX_MESSAGE_BYTES it could not be taken: whoever claims the rest refuses it.
return of[3] and #of[3] <= 8388608 and of[3] or 'null'
